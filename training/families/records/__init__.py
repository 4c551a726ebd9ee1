"""One record for each family: data without torch. `training.families.registry` holds them by name."""
