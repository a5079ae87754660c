"""L5. Many prompts to many audio files, here or in a bucket, on one machine or hundreds."""
