"""One file for each command. Importing this package is quick; each command imports what it needs."""
