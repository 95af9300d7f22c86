"""How a network's accuracy falls on corrupted and adversarial images, and what cheap remedies win back."""
