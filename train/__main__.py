"""`torchrun ... -m pix2pix_fast.train RECIPE DATA -o RUN`: the verb `pix2pix-fast train`."""

from pix2pix_fast.train.cli import train

if __name__ == "__main__":
    train()
