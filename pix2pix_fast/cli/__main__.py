"""python -m pix2pix_fast.cli"""

from . import main

main()
