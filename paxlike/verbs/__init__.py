"""The verbs of the command line. Each imports what is heavy when it runs."""
