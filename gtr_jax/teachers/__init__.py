"""Teachers: other models, whose vectors and scores are put into prepared data to train a smaller model on."""
