"""AudioAvatar: a talking 3D Gaussian avatar from one picture, moved particle by particle by audio."""
