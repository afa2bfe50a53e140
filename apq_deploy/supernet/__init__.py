"""The once-for-all supernet: elastic layers, extraction of subnets, progressive shrinking. Source: OFA (ICLR 2020)."""
