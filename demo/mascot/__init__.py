"""The mascot of Imprint, drawn by the project itself: what it looks like, where it goes, what it does there."""
