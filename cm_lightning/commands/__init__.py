"""The commands, one file for each. Importing this package is quick; each command imports what it needs."""
