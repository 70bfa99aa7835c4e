# openbook with FAISS for GPUs; torch brings its CUDA, the host the driver. `docker build -t openbook .`
# gcc: Triton compiles with it at the first step on a GPU.
# For CPUs: `docker build --build-arg FAISS=cpu -t openbook .`
FROM python:3.11-slim
ARG FAISS=gpu
RUN apt-get update && apt-get install --yes --no-install-recommends git gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/openbook
COPY pyproject.toml constraints.txt README.md LICENSE* ./
COPY src src
COPY callbacks callbacks
COPY experiments experiments
RUN pip install --no-cache-dir -c constraints.txt ".[${FAISS},embedded,formats,lora]"
ENV OMP_WAIT_POLICY=PASSIVE
WORKDIR /work
CMD ["openbook", "list"]
