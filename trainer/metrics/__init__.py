"""How good pictures are: feature networks, distances between sets of features, pictures of both."""
