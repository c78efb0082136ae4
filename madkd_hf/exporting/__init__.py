"""Students for other runtimes: ONNX, OpenVINO, ExecuTorch."""

KIND = "exported student"  # as the mark of its folder says
# of exported models, in a folder for each format; any other file there is the user's
FILES = ("model.onnx", "model.onnx_data", "model_quantized.onnx", "model_quantized.onnx_data", "model.pte")
FILES += ("openvino_model.xml", "openvino_model.bin")
NAMES = (
    *("config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json", "because.json"),
    *(f"{format}/{file}" for format in ("onnx", "openvino", "executorch") for file in FILES),
)
