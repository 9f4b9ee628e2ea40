"""The commands of the command line. Each imports heavy modules only when it runs."""
