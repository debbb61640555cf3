"""An artifact's provenance read by the foreign libraries: in-toto-attestation parses SLSA provenance and test result strictly
(an unknown field is an error), cyclonedx-python-lib validates the ML-BOM against the 1.6 schema; both must refuse a spoiled one.

    provenance.py ARTIFACT
"""
import hashlib
import json
import pathlib
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2

artifact = pathlib.Path(sys.argv[1])
folder = artifact / "provenance"


def refuses(parse, document):
    try:
        parse(document)
    except json_format.ParseError:
        return
    sys.exit("a spoiled document was accepted: the check checks nothing")


for name, message in [
    ("slsa-provenance.json", provenance_pb2.Provenance),
    ("test-result.json", test_result_pb2.TestResult),
]:
    statement = json.loads((folder / name).read_text())
    json_format.Parse(json.dumps(statement), statement_pb2.Statement())
    parse = lambda document: json_format.Parse(json.dumps(document), message())
    parse(statement["predicate"])
    refuses(parse, dict(statement["predicate"], unknown=1))
    for subject in statement["subject"]:
        found = hashlib.sha256((artifact / subject["name"]).read_bytes()).hexdigest()
        assert found == subject["digest"]["sha256"], f"{name}: {subject['name']} is another file"
    print(f"{name}: parsed, subject is the file that is served")

validator = JsonStrictValidator(SchemaVersion.V1_6)
text = (folder / "bom.cdx.json").read_text()
fault = validator.validate_str(text)
assert fault is None, fault
spoiled = json.loads(text)
spoiled["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] = 0.84
assert validator.validate_str(json.dumps(spoiled)) is not None, "a spoiled BOM was accepted"
print("bom.cdx.json: valid under CycloneDX 1.6")
