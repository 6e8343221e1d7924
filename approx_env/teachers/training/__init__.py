"""Trains a float teacher, and writes it in float and in INT8: `python -m approx_env.training --help`.

The recipe, and where each part comes from:

- Muon for kernels and matrices (Jordan et al., 2024), SGD with Nesterov momentum for vectors and the last layer; or
  SGD for all (`--optimizer sgd`). At equal time on two epochs of CIFAR-10 (JPEG), SqueezeNet: Muon 68.9 %, SGD 60.4 %.
- One-cycle learning rate, linear up and linear down to nothing (Smith & Topin, arXiv:1708.07120), and no weight decay
  on vectors (He et al., arXiv:1812.01187, section 3.1).
- Label smoothing (Szegedy et al., CVPR 2016, section 7), shifts and alternating mirrors
  (`approx_env.teachers.augment`), optional cutout (DeVries & Taylor, arXiv:1708.04552), CutMix (Yun et al., ICCV
  2019) and dropout; gradients clipped at norm 1 without batch norm.
- The first epochs may see images of three quarters of the side (`--small-epochs`; Touvron et al., NeurIPS 2019: a
  network trained on small images is tuned to larger ones in few epochs), which take half the time.
- The teacher may be an exponential moving average of the weights (`--ema`; Polyak & Juditsky, 1992; Tarvainen &
  Valpola, NeurIPS 2017), batch norm's statistics with it.
- Channels-last; bfloat16 autocast where the device multiplies it in hardware.
- Quantisation-aware epochs with batch norm folded (`--qat-epochs`, `approx_env.teachers.qat`).

A killed training, started again by the same command, goes on from its last finished epoch with the same random stream.
"""
