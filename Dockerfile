# The image of every node of a cluster: Ray, and ftae beside it. Neither CUDA nor a driver is in it: PyTorch brings
# the one, the host lends the other.
#
#   docker build -t ghcr.io/your-org/ftae:0.2.0 .
#   docker push ghcr.io/your-org/ftae:0.2.0
FROM rayproject/ray:2.60.0-py311-cpu

COPY --chown=ray:users pyproject.toml README.md LICENSE /home/ray/src/
COPY --chown=ray:users ftae /home/ray/src/ftae
RUN pip install --no-cache-dir "/home/ray/src[s3]" && rm -r /home/ray/src
