"""Pictures, masks, captions and quality: from a stranger's file to a training's dataset. No torch in here."""
