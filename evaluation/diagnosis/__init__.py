"""Reader study of image diagnosis: agreement, AUC and their intervals."""
