"""L5. Audio files or waveform records -> token records, by any number of processes or machines."""
