# ms_omni on a processor: the server with OpenAI's API, on the miniature unless a checkpoint is mounted.
#
#   docker build -t ms-omni .                                      (on aarch64: --build-arg KERNELS=armv8-a)
#   docker run -p 127.0.0.1:8000:8000 ms-omni
#   docker run -p 127.0.0.1:8000:8000 -v /path/to/checkpoint:/model ms-omni
#   docker run ms-omni demo --out /tmp/demo
#
# .ci/dockerfile.py runs these instructions without docker, in virtual environments; images themselves were not built by us.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG KERNELS="x86-64-v4 x86-64-v3"
RUN apt-get update && apt-get install -y --no-install-recommends g++
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build && MS_OMNI_PREBUILT="${KERNELS}" python -m build --outdir /wheels

FROM python:${PYTHON}-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
COPY examples/miniature /model
RUN pip install --no-cache-dir "$(echo /wheels/ms_omni-*.whl)[serve]" && ms-omni --version
ENV HOME=/tmp
USER 65534
EXPOSE 8000
HEALTHCHECK --start-period=10m CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready')"]
ENTRYPOINT ["ms-omni"]
CMD ["serve", "--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
