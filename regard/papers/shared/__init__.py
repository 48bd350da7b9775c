"""What several checks measure with: small models, known maps, a trainer."""
