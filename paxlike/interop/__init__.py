"""Models to and from other libraries' files and interfaces."""
