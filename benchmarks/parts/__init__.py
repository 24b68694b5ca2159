"""What the programs of this folder share; none of these modules is a program."""
