--- Names of images in registries.

local raises = require "spec.support.raises"
local reference = require "bough.reference"

describe("bough.reference", function()
  local HEX = ("0123456789abcdef"):rep(4)

  describe("parse", function()
    it("knows the forms that people write", function()
      local forms = {
        ["debian"] =
          { "registry-1.docker.io", "docker.io", "library/debian", "latest", nil, "debian:latest" },
        ["debian:12"] = { "registry-1.docker.io", "docker.io", "library/debian", "12", nil, "debian:12" },
        ["docker.io/library/debian:12"] =
          { "registry-1.docker.io", "docker.io", "library/debian", "12", nil, "debian:12" },
        ["docker.io/debian"] =
          { "registry-1.docker.io", "docker.io", "library/debian", "latest", nil, "debian:latest" },
        ["index.docker.io/a/b:c"] = { "registry-1.docker.io", "docker.io", "a/b", "c", nil, "a/b:c" },
        ["docker://a/b"] = { "registry-1.docker.io", "docker.io", "a/b", "latest", nil, "a/b:latest" },
        ["ghcr.io/a/b@sha256:" .. HEX] =
          { "ghcr.io", "ghcr.io", "a/b", nil, "sha256:" .. HEX, "ghcr.io/a/b@sha256:" .. HEX },
        ["debian:12@sha256:" .. HEX] =
          { "registry-1.docker.io", "docker.io", "library/debian", "12", "sha256:" .. HEX,
            "debian:12@sha256:" .. HEX },
        ["localhost:5000/x:y"] = { "localhost:5000", "localhost:5000", "x", "y", nil, "localhost:5000/x:y" },
        ["localhost/x"] = { "localhost", "localhost", "x", "latest", nil, "localhost/x:latest" },
        ["[::1]:5000/x"] = { "[::1]:5000", "[::1]:5000", "x", "latest", nil, "[::1]:5000/x:latest" },
        ["EXAMPLE.org/a--b_c__d.e:V1.0-_"] =
          { "example.org", "example.org", "a--b_c__d.e", "V1.0-_", nil, "example.org/a--b_c__d.e:V1.0-_" },
      }
      for text, form in pairs(forms) do
        local ref = reference.parse(text)
        assert.same(form, { ref.registry, ref.domain, ref.repository, ref.tag, ref.digest, ref.name, nil })
        assert.equal(ref.name, reference.familiar(ref.name))
      end
    end)

    it("refuses what is malformed, naming the part", function()
      local wrong = {
        [""] = "empty", [" "] = "blanks", ["a b"] = "blanks", ["a\nb"] = "control", ["x.io/"] = "repository",
        ["x.io"] = nil, ["Debian"] = "capital", ["a//b"] = "part", ["/a"] = "part", ["a/"] = "part",
        ["a/../b"] = "part", ["a/./b"] = "part", ["-a"] = "part", ["a-"] = "part", ["a___b"] = "part",
        ["a..b"] = "part", ["a._b"] = "part",
        ["a:"] = "tag", ["a:.x"] = "tag", ["a:-x"] = "tag",
        ["a:../x"] = "host", ["x.io/a:../x"] = "tag", ["x.io/a:x/../y"] = "tag",
        ["a:b:c"] = "tag", ["a:" .. ("t"):rep(129)] = "128", ["x.io/" .. ("a"):rep(256)] = "255",
        [("a"):rep(2000)] = "1024", ["a@"] = "digest", ["a@sha256:abc"] = "64",
        ["a@sha512:" .. HEX:rep(2)] = "sha512",
        ["a@sha256:" .. HEX:upper()] = "lower case", ["a@sha256:../../x"] = "digest", ["a@b@c"] = "digest",
        ["x..io/a"] = "host", ["-x.io/a"] = "host", ["x.io:99999/a"] = "host", ["x.io:/a"] = "host",
        ["u:p@x.io/a"] = "digest", ["https://x.io/a"] = "https://", ["[::1/a"] = "host",
        ["x.io:1:2/a"] = "host",
        ["ä"] = "part", ["a:ä"] = "tag", ["a\0b"] = "control",
      }
      for text, part in pairs(wrong) do
        local problem = raises("invalid", reference.parse, text, "import")
        assert.truthy(problem.message:find(part, 1, true), problem.message)
        assert.equal("import", problem.op)
      end
      raises("invalid", reference.parse, nil)
      raises("invalid", reference.parse, 12)
    end)
  end)

  describe("looks_like", function()
    it("tells names in registries from paths", function()
      for _, text in ipairs { "docker.io/x", "localhost/x", "localhost:1/x", "127.0.0.1:1/x", "[::1]:1/x",
        "docker://x", "a.b/c" } do
        assert.truthy(reference.looks_like(text), text)
      end
      for _, text in ipairs { "debian", "debian:12", "a/b", "./a/b", "../a/b", "/a.b/c", "a.tar", "", "/",
        ".a/b", "a.b/", "a.b//c", "~/a.b", "x y.z/a" } do
        assert.falsy(reference.looks_like(text), text)
      end
    end)
  end)
end)
