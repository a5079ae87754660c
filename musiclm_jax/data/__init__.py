"""SeqIO and TensorFlow live here and in tasks/, nowhere below."""
