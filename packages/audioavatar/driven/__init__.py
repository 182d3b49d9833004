"""Motion from audio: a linear basis of mouth motion, and what predicts it from what is spoken."""
