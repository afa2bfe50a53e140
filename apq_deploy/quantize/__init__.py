"""Linear quantization: clips from histograms, quantization-aware fine-tuning, and the way to integers."""
