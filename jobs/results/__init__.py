"""What a training has delivered: its file in the forms that programs read, its model card, and the checkpoint that its
owner chose."""
