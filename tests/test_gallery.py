"""The gallery is made by the code that stands here, while the documentation is built."""

from tests.scripts import ROOT, script

gallery = script("scripts/gallery.py")


def test_the_build_of_the_docs_makes_the_gallery():
    config = (ROOT / "mkdocs.yml").read_text()
    assert "scripts/gallery_hooks.py" in config
    assert "gallery.md" in config
    assert not (ROOT / "docs" / "gallery.md").exists()  # nothing to fall behind
    for name in gallery.GALLERY:
        assert f"(gallery/{name}.html)" in gallery.index()


def test_pages_are_made_again_where_the_package_changed(tmp_path, monkeypatch):
    made = []
    entry = gallery.Entry("one", "about", lambda: made.append(1) or f"page {len(made)}")
    monkeypatch.setattr(gallery, "GALLERY", {"one": entry})
    first = gallery.pages(tmp_path)["one"]
    assert gallery.pages(tmp_path)["one"].read_text() == "page 1"
    monkeypatch.setattr(gallery, "digest", lambda: "another")
    assert gallery.pages(tmp_path)["one"].read_text() == "page 2"
    assert first.read_text() == "page 1"


def test_the_digest_is_that_of_the_package(monkeypatch, tmp_path):
    package = tmp_path / "regard" / "views"
    package.mkdir(parents=True)
    (package / "page.py").write_text("x = 1\n")
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    before = gallery.digest()
    assert gallery.digest() == before
    (package / "page.py").write_text("x = 2\n")
    assert gallery.digest() != before


def test_a_page_of_the_gallery_is_whole():
    text = gallery.GALLERY["sentence"].make()
    assert "default-src 'none'" in text
    assert len(text) < 1e6
