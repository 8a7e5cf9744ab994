"""The reader study of image diagnosis: agreement, AUC and their intervals."""
