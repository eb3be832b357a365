"""Exercise 4: numerical checks of the claims on which the consistency function rests."""
