"""Building blocks of the networks, and the adversarial losses."""
