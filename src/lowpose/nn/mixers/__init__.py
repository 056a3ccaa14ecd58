"""Token mixers: ONE FILE PER WAY for the tokens of a picture to learn of each other."""
