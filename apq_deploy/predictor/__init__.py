"""The accuracy predictor: its data, its training, the transfer to quantized networks. Source: APQ (CVPR 2020), 3.2."""
