# The server of an exported bundle, without torch.
#
#   docker build -t regnet-deploy .                             for the CPU
#   docker build -t regnet-deploy:gpu --build-arg RUNTIME=gpu . for NVIDIA GPUs; run it with --gpus all
#   docker build --build-arg RUNTIME=openvino .                 for the CPU, with OpenVINO also where it is not x86
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/regnet-bundle:/bundle:ro" regnet-deploy
#
# It writes nothing: --read-only, --cap-drop ALL and any --user work. Options of `regnet-deploy serve` go at the end, but
# for the port: that is set with -e REGNET_DEPLOY_PORT=9000, which the health check follows, over HTTP or HTTPS. Metrics
# are on port 8002, for a network that clients do not reach; gRPC is an option, --grpc-port 8001; a token,
# -e REGNET_DEPLOY_TOKEN.

FROM python:3.11-slim-bookworm AS build
ARG RUNTIME=cpu
RUN case "$RUNTIME" in cpu|gpu|openvino) ;; \
    *) echo "RUNTIME is '$RUNTIME', it must be cpu, gpu or openvino" >&2; exit 1 ;; esac
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY profiles profiles
COPY export export
COPY regnet_deploy regnet_deploy
# No pip in what is shipped, none of the packages' own tests, nothing of OpenVINO for GPUs and NPUs, and the bytecode made
# now: later it could not be written.
RUN python -m venv --without-pip /opt/serve \
 && extras=$(echo "$RUNTIME" | sed 's/^openvino$/cpu,openvino/') \
 && python -m pip --python /opt/serve/bin/python install --no-cache-dir --no-compile -c constraints.txt ".[serve,grpc,$extras]" \
 && rm -f /opt/serve/lib/python*/site-packages/openvino/libs/libopenvino_intel_[gn]pu_* \
          /opt/serve/lib/python*/site-packages/openvino/libs/cache.json \
 && find /opt/serve/lib -type d \( -name tests -o -name test \) -prune -exec rm -rf {} + \
 && /opt/serve/bin/python -m compileall -q /opt/serve/lib

FROM python:3.11-slim-bookworm
COPY --from=build /opt/serve /opt/serve
ENV PATH=/opt/serve/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    REGNET_DEPLOY_PORT=8000 \
    REGNET_DEPLOY_METRICS_PORT=8002 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-m", "regnet_deploy.serving.probe"]
ENTRYPOINT ["regnet-deploy", "serve", "/bundle", "--host", "0.0.0.0"]
