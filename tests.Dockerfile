# The tests in a container: docker build -f tests.Dockerfile -t aimemo-tests . && docker run --rm aimemo-tests
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make redis-server && rm -rf /var/lib/apt/lists/*
WORKDIR /aimemo
COPY . .
RUN make .venv/.ready
CMD ["make", "test"]
