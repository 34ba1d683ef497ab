--- Images by somebody who means harm, or whose disk was full: one clear line each, nothing half-made, nothing
--- read that is not theirs.

local bough = require "bough"
local json = require "bough.json"
local lfs = require "lfs"
local maker = require "spec.support.oci_maker"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local tar = require "spec.support.fault_tar"

local sh, quote = scratch.sh, scratch.quote

local HEX = ("0123456789abcdef"):rep(4)

local function names_in(path)
  local names = {}
  for name in lfs.dir(path) do
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- Megabytes this process holds.
local function resident()
  local file = assert(io.open "/proc/self/statm")
  local pages = select(2, file:read("n", "n"))
  file:close()
  return pages * 4096 / 1e6
end

describe("a hostile image", function()
  local box, scratch_dir

  lazy_setup(function()
    box = bough.open { home = scratch.store() }
    scratch_dir = box:info().scratch
  end)

  lazy_teardown(function() box:close() end)

  local function state()
    return { images = #box.images:list { number = math.huge }, making = names_in(scratch_dir) }
  end

  -- Refused with one line in which each text is.
  local function refused(kind, path, ...)
    local before = state()
    local problem = raises(kind, box.images.import, box.images, path, { tag = "never" })
    local line = tostring(problem)
    assert.match("^import: ", line)
    assert.is_nil(line:find "%c", line)
    assert.is_true(#line < 500, line)
    for _, text in ipairs { ... } do
      assert(line:find(text, 1, true), ("%s is not in: %s"):format(text, line))
    end
    local patience = os.time() + 3 -- a layer that was dropped is removed a little later
    while #state().making > #before.making and os.time() < patience do bough.sleep(0.005) end
    assert.same(before, state())
    raises("not_found", box.images.get, box.images, "never")
    return line
  end

  -- What the store has already is not read again, so that each layer must be another.
  local made = 0
  local function one_file(name, data)
    made = made + 1
    return maker.layer { { name = name, data = data or "fine" }, { name = "number", data = tostring(made) } }
  end

  -- An image whose documents `spoil` has had in hands before they were sealed.
  local function spoilt(spoil, layers)
    local image = maker.image { layers = layers or { one_file "f" } }
    if spoil then spoil(image) end
    return image
  end

  local function layout(...) return (maker.layout(scratch.dir "layout", { spoilt(...) })) end

  -- A good layout with one of its files replaced.
  local function with_file(name, text)
    local path = layout()
    os.remove(path .. "/" .. name)
    if text then scratch.file(text, path .. "/" .. name) end
    return path
  end

  -- A layout whose index.json is this.
  local function with_index(index)
    return with_file("index.json", type(index) == "string" and index or maker.to_text(index))
  end

  local function with_entry(change)
    local path, index = maker.layout(scratch.dir "layout", { spoilt() })
    index.manifests[1] = maker.with(index.manifests[1], change)
    os.remove(path .. "/index.json")
    scratch.file(maker.to_text(index), path .. "/index.json")
    return path
  end

  it("is no better for the good one beside it", function()
    assert.equal("fine", box.images:import(layout()):read "/f")
  end)

  describe("with documents", function()
    it("that are missing, empty or something else", function()
      refused("corrupt", "oci:" .. with_file("oci-layout", nil), "oci-layout", "missing")
      refused("corrupt", with_file("oci-layout", ""), "oci-layout", "not JSON")
      refused("corrupt", with_file("oci-layout", "{}"), "version")
      refused("corrupt", with_file("oci-layout", '{"imageLayoutVersion":1}'), "version")
      refused("unsupported", with_file("oci-layout", '{"imageLayoutVersion":"2.0.0"}'), "2.0.0")
      refused("corrupt", "oci:" .. with_file("index.json", nil), "index.json", "missing")
      for _, text in ipairs {
        "", "null", "7", '"text"', "[]", "{}", "<html><body>Not found</body></html>", '{"manifests":',
        "\0\0\0\0", '{"manifests":[{}]}', '{"manifests":{"a":1}}', '{"manifests":"x"}', '{"manifests":[7]}',
        '{"manifests":[null]}', '{"manifests":[[[]]]}', '{"layers":[]}',
        '{"manifests":[{"digest":"sha256:' .. HEX .. '"}]}',
      } do
        refused("corrupt", with_index(text), "index.json")
      end
      refused("not_found", with_index '{"manifests":[]}', "no image")
      refused("not_found", with_index '{"manifests":null}', "no image")
    end)

    it("that are made to fill memory", function()
      collectgarbage()
      local before = resident()
      for _, text in ipairs {
        ("["):rep(4 << 20), '{"manifests":' .. ("["):rep(100) .. ("]"):rep(100) .. "}",
        '{"manifests":[' .. ("[],"):rep(2 << 20) .. "[]]}", ("[1,"):rep(10) .. ("0,"):rep(3 << 20),
        '{"a":"' .. ("x"):rep(9 << 20) .. '"}', ('{"a":'):rep(500000),
      } do
        refused("corrupt", with_index(text), "index.json")
      end
      local entry = ('{"digest":"sha256:%s","size":7},'):format(HEX)
      refused("corrupt", with_index('{"manifests":[' .. entry:rep(5000):sub(1, -2) .. "]}"), "5000", "2000")
      refused("corrupt", with_index('{"manifests":[' .. entry:rep(100000)), "index.json")
      collectgarbage()
      assert.is_true(resident() - before < 120, "grew by " .. resident() - before)
    end)

    it("that are not files", function()
      for _, name in ipairs { "oci-layout", "index.json" } do
        local path = with_file(name, nil)
        sh("ln -s /etc/passwd " .. path .. "/" .. name)
        local line = refused("corrupt", path, name, "symlink")
        assert.is_nil(line:find("root:", 1, true))
        path = with_file(name, nil)
        sh("mkfifo " .. path .. "/" .. name)
        refused("corrupt", path, name, "fifo")
        path = with_file(name, nil)
        sh("mkdir " .. path .. "/" .. name)
        refused("corrupt", path, name, "dir")
      end
    end)

    it("that are two things at once", function()
      refused("corrupt", layout(function(image)
        image.manifest.manifests = { { digest = "x" } }
      end), "at once")
      refused("corrupt", layout(function(image)
        image.manifest.manifests, image.manifest.layers = image.manifest.layers, nil
      end), "no manifest")
    end)

    it("in forms that nobody knows", function()
      refused("unsupported", layout(function(image)
        image.manifest.schemaVersion, image.manifest.mediaType = 1, nil
      end), "schema 1")
      refused("unsupported", with_entry { mediaType = "application/vnd.example.thing+json" },
        "application/vnd.example.thing+json")
      refused("unsupported", layout(function(image)
        image.manifest.config.mediaType = "application/vnd.cncf.helm.config.v1+json"
      end), "helm")
    end)

    it("nested without end", function()
      local image = spoilt()
      for _ = 1, 3 do image = { index = { image } } end
      refused("corrupt", maker.layout(scratch.dir "nested", { image }), "nested")
      -- an index cannot hold its own digest, but it can say so
      local path = layout()
      local text = ('{"schemaVersion":2,"manifests":[{"digest":"sha256:%s","size":152}]}'):format(HEX)
      scratch.file(text, maker.blob(path, "sha256:" .. HEX))
      os.remove(path .. "/index.json")
      scratch.file(text:gsub("152", tostring(#text)), path .. "/index.json")
      refused("corrupt", path, "digest")
    end)
  end)

  describe("with digests", function()
    it("that lead elsewhere, or are none", function()
      for _, digest in ipairs {
        "sha256:../../../../etc/passwd", "sha256:" .. ("../"):rep(21) .. "a", "", "../../../etc/passwd",
        "sha256:",
        "sha256:" .. HEX:upper(), "sha256:" .. HEX .. "00", "sha256:" .. HEX:sub(2), HEX, "md5:" .. HEX,
        "sha256:" .. HEX:sub(2) .. "\0", "sha256:" .. HEX:sub(2) .. "/", "SHA256:" .. HEX,
      } do
        refused("corrupt", with_entry { digest = digest }, "no digest")
        refused("corrupt", layout(function(image) image.manifest.config.digest = digest end), "no digest")
        refused("corrupt", layout(function(image)
          image.manifest.layers[1] = maker.with(image.manifest.layers[1], { digest = digest })
        end), "no digest", "layer 1")
        refused("corrupt", layout(function(image) image.config.rootfs.diff_ids = { digest } end), "no digest")
      end
      refused("corrupt", with_entry { digest = 7 }, "no digest")
      refused("corrupt", with_entry { digest = json.null }, "no digest")
      refused("unsupported", with_entry { digest = "sha512:" .. HEX .. HEX }, "sha512", "only sha256")
    end)

    it("that are another blob's", function()
      local good = one_file "good"
      local bad = one_file "evil"
      bad.descriptor.digest = good.descriptor.digest
      local path = layout(nil, { bad })
      refused("corrupt", path, "layer 1", "digest", good.descriptor.digest:sub(1, 19))
      for _, what in ipairs { "config", "manifest" } do
        local dir, index = maker.layout(scratch.dir "layout", { spoilt() })
        local digest = index.manifests[1].digest
        if what == "config" then
          digest = json.read(maker.read(maker.blob(dir, digest))).config.digest
        end
        local file = maker.blob(dir, digest)
        local text = maker.read(file)
        os.remove(file)
        scratch.file(text:gsub("sha256:", "sha255:", 1), file)
        refused("corrupt", dir, "digest", what)
      end
    end)

    it("of layers that unpack to something else", function()
      -- the chain of layers would be known by a false name from then on
      local good, evil = one_file("f", "good"), one_file("f", "evil")
      local function claim(image) image.config.rootfs.diff_ids = { good.diff_id } end
      refused("corrupt", layout(claim, { evil }), "layer 1", "content")
      local path = maker.layout(scratch.dir "layout", { maker.image { layers = { good } } })
      assert.equal("good", box.images:import(path):read "/f")
    end)
  end)

  describe("with sizes", function()
    it("that are absurd", function()
      for _, size in ipairs { -1, 1e300, 1.5, (1 << 53) * 4.0, "7", json.null, 1 << 62 } do
        refused("corrupt", with_entry { size = size }, "size")
        refused("corrupt", layout(function(image) image.manifest.config.size = size end), "size", "config")
        refused("corrupt", layout(function(image)
          image.manifest.layers[1] = maker.with(image.manifest.layers[1], { size = size })
        end), "size", "layer 1")
      end
      refused("corrupt", layout(function(image) image.manifest.config.size = 100 << 20 end), "size")
    end)

    it("that are not the blob's", function()
      refused("corrupt", with_entry { size = 7 }, "bytes instead of 7")
      refused("corrupt", layout(function(image)
        image.manifest.layers[1] = maker.with(image.manifest.layers[1], { size = 1 << 39 })
      end), "layer 1", "instead of")
      local path, index = maker.layout(scratch.dir "layout", { spoilt() })
      local file = maker.blob(path, index.manifests[1].digest)
      local text = maker.read(file)
      os.remove(file)
      scratch.file(text:sub(1, 100), file)
      refused("corrupt", path, "has 100 bytes")
    end)

    it("that make it unpack without end", function()
      local dir = scratch.dir "bomb"
      local size = 3 << 30
      scratch.file(tar.entry { name = "zeros", size = size }, dir .. "/head")
      sh(("cd %s && { cat head; head -c %d /dev/zero; } | zstd -q -1 -o bomb"):format(dir, size + 1024))
      local layer = maker.layer "placeholder"
      layer.data = maker.read(dir .. "/bomb")
      layer.descriptor.digest, layer.descriptor.size = maker.digest(layer.data), #layer.data
      refused("resource", layout(nil, { one_file "before", layer }), "layer 2", "bomb")
    end)
  end)

  describe("with blobs", function()
    local function with_blob(command)
      local layer = one_file "f"
      local path = layout(nil, { layer })
      sh(("cd %s/blobs/sha256 && f=%s && %s"):format(path, layer.descriptor.digest:sub(8), command))
      return path
    end

    it("that are missing, links or devices", function()
      refused("corrupt", with_blob "rm $f", "layer 1", "missing")
      refused("corrupt", with_blob "rm $f && ln -s /etc/passwd $f", "symlink")
      refused("corrupt", with_blob "mv $f elsewhere && ln -s elsewhere $f", "symlink")
      refused("corrupt", with_blob "rm $f && mkdir $f", "dir")
      refused("corrupt", with_blob "rm $f && mkfifo $f", "fifo")
      if scratch.is_root then refused("corrupt", with_blob "rm $f && mknod $f c 1 5", "other") end
      refused("corrupt", with_blob "cd .. && mv sha256 away && ln -s away sha256", "sha256", "symlink")
      refused("corrupt", with_blob "cd ../.. && mv blobs away && ln -s away blobs", "blobs", "symlink")
    end)

    it("of layers that are cut short or damaged, with the right digest", function()
      for _, how in ipairs { "none", "gzip", "zstd" } do
        local whole = maker.layer({ { name = "f", data = sh "head -c 100000 /dev/urandom | base64" } }, how)
        local cut = maker.layer(whole.data:sub(1, #whole.data // 2))
        cut.descriptor.mediaType, cut.diff_id = whole.descriptor.mediaType, whole.diff_id
        refused("corrupt", layout(nil, { one_file "before", cut }), "layer 2")
      end
    end)

    it("of layers that lead out", function()
      for _, entry in ipairs {
        { name = "../evil", data = "x" }, { name = "a/../../evil", data = "x" }, { name = "../.wh.evil" },
        { name = "h", type = "1", link = "../../../etc/passwd" }, { name = "/../evil", data = "x" },
      } do
        refused("invalid", layout(nil, { one_file "f", maker.layer { entry } }), "layer 2")
      end
      local outside = scratch.dir "outside"
      scratch.file("mine", outside .. "/file")
      local way = maker.layer { { name = "way", type = "2", link = outside } }
      for _, name in ipairs { "way/evil", "way/.wh.file", "way/.wh..wh..opq" } do
        -- as everywhere, the link means what it does inside
        local image = box.images:import(layout(nil, { way, maker.layer { { name = name, data = "" } } }))
        assert.equal(name == "way/evil" and 1 or 0, #image:ls(outside))
        assert.same({ "file" }, names_in(outside))
      end
    end)

    it("of layers that forge what belongs to the overlay", function()
      for _, key in ipairs { "trusted.overlay.opaque", "user.overlay.redirect", "user.overlay.opaque" } do
        local pax = { ["SCHILY.xattr." .. key] = "y" }
        refused("invalid", layout(nil, { maker.layer { { name = "d/", type = "5", pax = pax } } }), key)
      end
      refused("invalid", layout(nil, { maker.layer { { name = ".wh.." } } }), "layer 1")
      refused("invalid", layout(nil, { maker.layer { { name = "d/.wh." } } }), "layer 1")
    end)

    it("that are encrypted, not to be had, or of an unknown kind", function()
      local function with_type(media_type, remove)
        local layer = one_file "f"
        layer.descriptor.mediaType = media_type
        local path = layout(nil, { layer })
        if remove then os.remove(maker.blob(path, layer.descriptor.digest)) end
        return path
      end
      local OCI = "application/vnd.oci.image.layer."
      refused("unsupported", with_type(OCI .. "v1.tar+gzip+encrypted"), "encrypted")
      refused("unsupported", with_type "application/vnd.example.squashfs", "squashfs", "unknown")
      refused("unsupported", with_type(OCI .. "nondistributable.v1.tar", true), "not in the image")
      assert.equal("fine", box.images:import(with_type(OCI .. "nondistributable.v1.tar")):read "/f")
    end)
  end)

  describe("with a configuration", function()
    it("that speaks of other layers", function()
      local id = maker.digest "x"
      refused("corrupt", layout(function(image) image.config.rootfs.diff_ids = { id, id } end), "2 layers")
      refused("corrupt", layout(function(image) image.config.rootfs = nil end), "0 layers")
      refused("corrupt", layout(function(image) image.config.rootfs.diff_ids = "x" end), "diff_ids")
      refused("corrupt", layout(function(image) image.config.rootfs = "x" end), "rootfs")
      local many = {}
      for i = 1, 501 do many[i] = one_file "same" end
      refused("corrupt", layout(nil, many), "501", "500")
    end)

    it("that holds anything but text", function()
      for name, values in pairs {
        Env = { "A=b", { A = "b" }, { 7 }, { { "A=b" } }, { "A=b\0c" } },
        Cmd = { "sh", { sh = 1 }, { true } },
        Entrypoint = { 7, { "a\0b" } }, WorkingDir = { 7, { "/" }, "/a\0b" },
        User = { 0, { "root" }, "a b", "1:2:3", "99999999999", "ro\not" },
        Labels = { "x", { "x" }, { a = 7 } }, ExposedPorts = { 80, { "80/tcp" } },
      } do
        for _, value in ipairs(values) do
          refused("corrupt", layout(function(image) image.config.config[name] = value end), "config")
        end
      end
      refused("corrupt", layout(function(image) image.config.config = "x" end), "config")
      refused("corrupt", layout(function(image) image.config = "[]" end), "config")
      refused("corrupt", layout(function(image) image.config = ("["):rep(100) end), "config", "deep")
    end)

    it("for nonsense platforms is taken as it is", function()
      local path = layout(function(image) image.config.os, image.config.architecture = 7, "../.." end)
      assert.equal("fine", box.images:import(path):read "/f")
    end)
  end)

  it("with names to spoil a terminal gives one line that can be printed", function()
    local key = "org.opencontainers.image.ref.name"
    local path = with_entry { annotations = { [key] = "\27[2Jgone\nfake: line" } }
    refused("not_found", "oci:" .. path .. ":\27[31mred", "gone")
    path = with_entry { annotations = { [key] = "../../../../etc/passwd" } }
    assert.equal("fine", box.images:import("oci:" .. path .. ":../../../../etc/passwd"):read "/f")
    local names = {}
    for i = 1, 40 do
      names[i] = spoilt()
      names[i].name = ("name-%d-%s"):format(i, ("n"):rep(300))
    end
    refused("invalid", maker.layout(scratch.dir "many", names), "name-1-", "more")
  end)

  describe("as a docker archive", function()
    local function docker(change, form)
      local path = maker.docker(scratch.dir "docker", { maker.image { layers = { one_file "f" } } }, form)
      local entries = json.read(maker.read(path .. "/manifest.json"))
      local text = maker.to_text(change and change(entries[1], path) or entries)
      os.remove(path .. "/manifest.json")
      scratch.file(text, path .. "/manifest.json")
      return path
    end

    it("with paths that lead out", function()
      for _, name in ipairs {
        "../../../../etc/passwd", "/etc/passwd", "a/../../x", "..", ".", "", "a//../b", "x\0y", "\27[2J", 7,
        json.null, {},
      } do
        refused("corrupt", docker(function(entry) entry.Config = name end), "config")
        refused("corrupt", docker(function(entry) entry.Layers = { name } end), "layer")
      end
    end)

    it("with links that lead out", function()
      local function linked(target)
        return docker(function(entry, path)
          local name = path .. "/" .. entry.Layers[1]
          sh(("mv %s %s/kept; ln -s %s %s"):format(name, path, quote(target), name))
        end, "old")
      end
      for _, target in ipairs {
        "/etc/passwd", "../../etc/passwd", "../../../etc/layer.tar", "../x/../../layer.tar", "../kept",
        ".", "layer.tar", "../../layer.tar", "../../layer.tar/layer.tar",
      } do
        refused("corrupt", linked(target), "layer 1", "link")
      end
      refused("corrupt", linked("../" .. HEX .. "/layer.tar"), "layer 1", "missing")
      refused("corrupt", docker(function(entry, path)
        sh(("cd %s && mv %s kept && ln -s kept %s"):format(path, entry.Config, entry.Config))
      end), "config", "symlink")
    end)

    it("with a manifest that is none", function()
      for _, text in ipairs { "", "{}", "[]", "[7]", '["x"]', "[[]]", '{"a":{}}', "<html>", "[null]" } do
        local path = docker(function() return text end)
        refused("corrupt", "docker-archive:" .. path, "manifest.json")
      end
      refused("corrupt", docker(function(entry) entry.Layers = "x" end), "layers")
      refused("corrupt", docker(function(entry) entry.Layers = { a = 1 } end), "layers")
      refused("corrupt", docker(function(entry) entry.Layers = nil end), "layers")
      refused("corrupt", docker(function(entry) entry.Config = HEX .. ".json" end), "missing")
    end)

    it("with content that is not what its names say", function()
      refused("corrupt", docker(function(entry, path)
        local text = maker.read(path .. "/" .. entry.Config)
        os.remove(path .. "/" .. entry.Config)
        scratch.file(text .. " ", path .. "/" .. entry.Config)
      end), "config", "digest")
      refused("corrupt", docker(function(entry, path)
        os.remove(path .. "/" .. entry.Layers[1])
        scratch.file(tar.archive { { name = "evil", data = "x" } }, path .. "/" .. entry.Layers[1])
      end), "layer 1", "content")
    end)

    it("in a tar with links leads nowhere either", function()
      local path = docker(function(entry, path)
        local name = path .. "/" .. entry.Layers[1]
        os.remove(name)
        sh("ln -s /etc/passwd " .. name)
      end)
      refused("corrupt", maker.pack(path, scratch.dir "packed" .. "/image.tar"), "symlink")
      local evil = scratch.file(tar.archive {
        { name = "manifest.json", data = "[]" }, { name = HEX .. ".json", data = "{}" },
        { name = "../evil", data = "x" },
      })
      refused("invalid", "docker-archive:" .. evil, "evil")
      assert.is_nil(lfs.symlinkattributes(evil:match "^(.*)/" .. "/../evil"))
    end)
  end)

  it("leaves the store as it was", function()
    assert.equal("fine", box.images:import(layout()):read "/f")
    box:gc()
  end)
end)
