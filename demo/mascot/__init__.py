"""Draws the mascot of Imprint: the character, its surroundings and its poses."""
