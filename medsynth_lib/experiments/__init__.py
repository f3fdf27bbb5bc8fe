"""What lessons and sweeps share: trained models, lesson data, studies and their sweep."""
