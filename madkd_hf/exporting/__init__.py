"""Students for other runtimes: ONNX, OpenVINO, ExecuTorch."""

KIND = "exported student"  # as the mark of its folder says
FILES = ("*.onnx", "*_data", "*.xml", "*.bin", "*.pte")  # of exported models, in a folder for each format
NAMES = (
    *("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json", "because.json"),
    *(f"{format}/{file}" for format in ("onnx", "openvino", "executorch") for file in FILES),
)
