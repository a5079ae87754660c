"""L5. Systems to compare with: each fills a folder, a clip for each caption, for comparison.py."""
