"""How a network's accuracy falls on corrupted and attacked images, beside the cheap remedies, for any network."""
