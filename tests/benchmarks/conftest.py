from tests.storage.conftest import url as url
