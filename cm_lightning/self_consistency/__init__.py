"""Exercise 4: the claims that the consistency function rests on, each checked by numbers."""
