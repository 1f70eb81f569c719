"""The picture work: originals made ready to be sent, results made into cut-outs and renditions."""
