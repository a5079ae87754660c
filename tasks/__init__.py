"""SeqIO tasks over waveform records and token records."""
