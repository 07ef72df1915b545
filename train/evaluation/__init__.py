"""How good the pictures are, by the paper's measures and a few common ones; docs/training.md says how.

compare.py reads two folders and asks pixel.py (L1, PSNR, SSIM), histogram.py (Lab colours), labels.py
(accuracies and IoU, FCN score) and features.py (FID, KID, LPIPS); study.py asks people.
"""
