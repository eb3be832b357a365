"""One file a command. Importing this package is quick; each command imports what it needs."""
