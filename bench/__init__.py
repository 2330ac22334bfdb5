"""Speed and quality side by side with named peers; figures in results/."""
