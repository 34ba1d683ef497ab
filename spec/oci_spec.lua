--- Images of others: OCI layouts and docker archives come in with their layers, defaults and platforms.

local bough = require "bough"
local lfs = require "lfs"
local maker = require "spec.support.oci_maker"
local platform = require "bough.platform"
local raises = require "spec.support.raises"
local registry = require "spec.support.registry"
local scratch = require "spec.support.scratch"
local tar = require "spec.support.fault_tar"

local sh = scratch.sh

local function dir_entry(name, more)
  return maker.with({ name = name .. "/", type = "5", mode = 493 }, more)
end

local function names_of(image, path)
  local names = {}
  for i, entry in ipairs(image:ls(path)) do names[i] = entry.name end
  return table.concat(names, " ")
end

local function other_platform()
  local here = platform.here().architecture
  return { os = "linux", architecture = here == "s390x" and "ppc64le" or "s390x" }
end

describe("images:import of an OCI layout or docker archive", function()
  local box

  lazy_setup(function() box = bough.open { home = scratch.store() } end)

  lazy_teardown(function() box:close() end)

  local function import(...) return box.images:import(...) end

  local function layout(images) return (maker.layout(scratch.dir "layout", images)) end

  local function one_file(name, data) return maker.layer { { name = name, data = data or name } } end

  describe("stacks layers", function()
    -- what is in the second layer must do to the first one what overlays do
    local base, above

    lazy_setup(function()
      base = maker.layer {
        dir_entry "etc", { name = "etc/kept", data = "kept" }, { name = "etc/gone", data = "gone" },
        { name = "etc/changed", data = "old", mode = 384 },
        dir_entry "opaque", { name = "opaque/hidden", data = "1" }, dir_entry "opaque/deep",
        { name = "opaque/deep/hidden", data = "2" },
        dir_entry "tree", { name = "tree/a", data = "a" }, { name = "becomes-dir", data = "x" },
        dir_entry "becomes-file", { name = "becomes-file/inner", data = "x" },
        { name = "linked", data = "shared", mode = 420 }, dir_entry "mode", { name = "mode/in", data = "m" },
        { name = "to-symlink", data = "s" },
      }
      above = maker.layer({
        { name = "etc/.wh.gone", data = "" }, { name = "etc/changed", data = "new" },
        { name = "opaque/seen", data = "3" }, { name = "opaque/.wh..wh..opq", data = "" },
        { name = ".wh.tree", data = "" }, { name = "becomes-dir/", type = "5", mode = 493 },
        { name = "becomes-dir/inner", data = "y" }, { name = "becomes-file", data = "now a file" },
        { name = "again", type = "1", link = "linked" }, dir_entry("mode", { mode = 448, mtime = 981173106 }),
        { name = "to-symlink", type = "2", link = "etc/kept" },
      }, "gzip")
    end)

    local function check(image)
      assert.equal("again becomes-dir becomes-file etc linked mode opaque to-symlink", names_of(image, "/"))
      assert.equal("changed kept", names_of(image, "/etc"))
      assert.equal("new", image:read "/etc/changed")
      assert.equal("kept", image:read "/etc/kept")
      assert.equal("seen", names_of(image, "/opaque"))
      assert.equal("y", image:read "/becomes-dir/inner")
      assert.equal("now a file", image:read "/becomes-file")
      assert.equal("shared", image:read "/again")
      assert.equal("kept", image:read "/to-symlink")
      assert.equal("in", names_of(image, "/mode"))
      local found = {}
      for _, entry in ipairs(image:ls "/") do found[entry.name] = entry end
      assert.equal(2, found.again.nlink)
      assert.equal(2, found.linked.nlink)
      assert.equal(448, found.mode.mode)
      assert.equal(981173106, math.floor(found.mode.mtime))
      assert.equal("symlink", found["to-symlink"].kind)
    end

    it("with whiteouts, opaque directories and links between them", function()
      local image = import(layout { maker.image { layers = { base, above } } }, { tag = "stacked" })
      check(image)
      assert.equal("import", image.origin)
      assert.equal("pulled", image.state)
      assert.equal(image.uuid, box.images:get "stacked".uuid)
    end)

    it("and a run sees the same", function()
      local busybox = maker.layer {
        dir_entry "bin", { name = "bin/busybox", data = maker.read "/bin/busybox", mode = 493 },
        { name = "bin/sh", type = "2", link = "busybox" },
      }
      local image = import(layout { maker.image { layers = { base, above, busybox } } })
      local run = image:run { "/bin/busybox", "sh", "-c",
        "cd /; busybox ls -A opaque; busybox cat again etc/changed to-symlink; test ! -e tree",
        check = true }
      assert.equal("seen\nsharednewkept", run.stdout)
    end)

    it("plain, gzip and zstd", function()
      local layers = {
        maker.layer { { name = "a", data = "1" } }, maker.layer({ { name = "b", data = "2" } }, "gzip"),
        maker.layer({ { name = "c", data = "3" } }, "zstd"), maker.layer {},
      }
      local image = import(layout { maker.image { layers = layers } })
      assert.equal("a b c", names_of(image, "/"))
      assert.equal("3", image:read "/c")
    end)

    it("once, however many images have them", function()
      local shared = one_file("shared", ("s"):rep(100000))
      local first = layout { maker.image { layers = { shared, one_file "one" } } }
      local second = layout { maker.image { layers = { shared, one_file "two" } } }
      import(first)
      local before = box:info().layers
      os.remove(maker.blob(second, shared.descriptor.digest)) -- nobody asks for it
      local image = import(second)
      assert.equal("shared two", names_of(image, "/"))
      assert.equal(before + 1, box:info().layers)
      local again = import(second)
      assert.not_equal(image.uuid, again.uuid)
      assert.equal(before + 1, box:info().layers)
    end)

    it("and the same layer above another is another", function()
      local same = one_file "same"
      local without = maker.layer { { name = ".wh.same" } }
      local image = import(layout { maker.image { layers = { same, without, same } } })
      assert.equal("same", image:read "/same")
    end)

    it("even when there are none", function()
      assert.equal("", names_of(import(layout { maker.image { layers = {} } }), "/"))
    end)
  end)

  describe("takes defaults from the configuration", function()
    local function with_config(config, tag)
      local layer = maker.layer {
        dir_entry "bin", { name = "bin/busybox", data = maker.read "/bin/busybox", mode = 493 },
        { name = "bin/sh", type = "2", link = "busybox" }, dir_entry "srv",
        dir_entry "etc", { name = "etc/passwd", data = "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:/bin/sh\n" },
      }
      return import(layout { maker.image { layers = { layer }, config = config } }, { tag = tag })
    end

    it("which runs honour, and can override", function()
      local image = with_config {
        Env = { "GREETING=good day", "PATH=/bin", "nonsense" }, WorkingDir = "/srv", User = "web",
        Labels = { maintainer = "somebody" }, ExposedPorts = { ["80/tcp"] = {} }, Cmd = { "sh" },
      }
      local command = 'echo "$GREETING $(busybox pwd) $(busybox id -u) ${nonsense-unset}"'
      assert.equal("good day /srv 33 unset\n", image:run(command).stdout)
      local run = image:run(command, { env = { GREETING = "hello" }, cwd = "/", user = "0" })
      assert.equal("hello / 0 unset\n", run.stdout)
      local below = image:run "true"
      assert.equal("good day /srv 33 unset\n", below:run(command).stdout)
    end)

    it("and tolerates null in their place", function()
      local null = require "bough.json".null
      local image = with_config { Env = null, WorkingDir = "", User = null, Labels = null, Cmd = null }
      assert.equal("/\n", image:run "busybox pwd".stdout)
    end)
  end)

  describe("picks the platform", function()
    local here, other

    lazy_setup(function()
      here = maker.image { layers = { one_file "ours" }, platform = platform.here() }
      other = maker.image { layers = { one_file "theirs" }, platform = other_platform() }
    end)

    it("of this machine, or the one asked for", function()
      local path = layout { other, here }
      assert.equal("ours", names_of(import(path), "/"))
      assert.equal("theirs", names_of(import(path, { platform = platform.text(other_platform()) }), "/"))
    end)

    it("in an index in an index", function()
      local path = layout { { name = "v1", index = { other, { index = { here } } } } }
      local problem = raises("not_found", import, path)
      assert.match(platform.text(other_platform()), tostring(problem))
      path = layout { { name = "v1", index = { other, here } }, { name = "v2", index = { other } } }
      assert.equal("ours", names_of(import("oci:" .. path .. ":v1"), "/"))
      problem = raises("not_found", import, "oci:" .. path .. ":v2")
      assert.match("no image for " .. platform.text(platform.here()), tostring(problem), 1, true)
      assert.match("it has " .. platform.text(other_platform()), tostring(problem), 1, true)
    end)

    it("and refuses an image that says it is for another", function()
      local path = layout { maker.image { layers = { one_file "f" }, platform = other_platform() } }
      local problem = raises("unsupported", import, path)
      assert.match("it is for " .. platform.text(other_platform()), tostring(problem), 1, true)
      assert.equal("f", names_of(import(path, { platform = other_platform().architecture }), "/"))
    end)

    it("whatever it is called", function()
      for text, expected in pairs {
        ["linux/amd64"] = "linux/amd64", amd64 = "linux/amd64", x86_64 = "linux/amd64",
        ["linux/arm64/v8"] = "linux/arm64", ["linux/arm/v7"] = "linux/arm", ["linux/arm/v6"] = "linux/arm/v6",
      } do
        assert.equal(expected, platform.text(platform.parse(text, "test")))
      end
      raises("invalid", platform.parse, "", "test")
      raises("invalid", platform.parse, "a/b/c/d", "test")
      raises("invalid", platform.parse, "linux/../etc", "test")
      raises("unsupported", platform.parse, "windows/amd64", "test")
      -- a newer 32-bit arm takes what is for older ones, the best first
      local items = {}
      for i, variant in ipairs { "v5", "v7", "v6" } do
        items[i] = { platform = { os = "linux", architecture = "arm", variant = variant } }
      end
      assert.equal(items[2], platform.pick(platform.parse("arm", "test"), items))
      assert.equal(items[3], platform.pick(platform.parse("linux/arm/v6", "test"), items))
      assert.is_nil(platform.pick(platform.parse("arm64", "test"), items))
    end)
  end)

  describe("finds one of several images", function()
    local function two(make)
      return make(scratch.dir "several", {
        maker.image { layers = { one_file "first" }, name = "first:1" },
        maker.image { layers = { one_file "second" }, name = "registry.example/second:2" },
      })
    end

    it("in a layout by its name", function()
      local path = two(maker.layout)
      assert.equal("first", names_of(import("oci:" .. path .. ":first:1"), "/"))
      assert.equal("second", names_of(import("oci:" .. path .. ":registry.example/second:2"), "/"))
      for kind, name in pairs { invalid = path, not_found = "oci:" .. path .. ":3" } do
        assert.match('"first:1", "registry.example/second:2"', tostring(raises(kind, import, name)), 1, true)
      end
    end)

    it("in a docker archive by its tag or its place", function()
      local path = maker.pack(two(maker.docker), scratch.dir "packed" .. "/two.tar")
      local function name_in(ref) return names_of(import("docker-archive:" .. path .. ":" .. ref), "/") end
      assert.equal("first", name_in "first:1")
      assert.equal("first", name_in "docker.io/library/first:1")
      assert.equal("second", name_in "registry.example/second:2")
      assert.equal("second", name_in "@1")
      for kind, name in pairs { invalid = path, not_found = "docker-archive:" .. path .. ":third" } do
        assert.match('"first:1", "registry.example/second:2"', tostring(raises(kind, import, name)), 1, true)
      end
    end)
  end)

  describe("knows by its content", function()
    local images

    lazy_setup(function()
      local shared = one_file("f", "content")
      images = { maker.image { layers = { shared, one_file "g", shared }, name = "named:1" } }
    end)

    local function is_right(image) assert.equal("f g", names_of(image, "/")) end

    it("a docker archive, whether unpacked, a tar or compressed", function()
      for _, form in ipairs { "new", "old" } do
        local path = maker.docker(scratch.dir "docker", images, form)
        is_right(import(path))
        local packed = maker.pack(path, scratch.dir "packed" .. "/image.tar")
        is_right(import(packed))
        sh(("gzip -k %s; zstd -q %s"):format(packed, packed))
        local before = box:info().images
        is_right(import(packed .. ".gz", { tag = "from-gz" }))
        assert.equal(before + 1, box:info().images)
        is_right(box.images:get "from-gz")
        is_right(import(packed .. ".zst", { format = "docker-archive" }))
        is_right(import("docker-archive:" .. packed .. ".zst"))
      end
    end)

    it("an OCI layout, whether a directory, a tar or compressed", function()
      local path = layout(images)
      is_right(import(path))
      is_right(import("oci:" .. path))
      local packed = maker.pack(path, scratch.dir "packed" .. "/image.tar")
      is_right(import(packed))
      is_right(import("oci-archive:" .. packed .. ":named:1"))
      sh("gzip " .. packed)
      is_right(import(packed .. ".gz"))
    end)

    it("a root file system that looks a little like one", function()
      local image = import(scratch.file(tar.archive {
        { name = "manifest.json", data = "[]" }, dir_entry "bin", { name = "bin/x", data = "x" },
      }))
      assert.equal("bin manifest.json", names_of(image, "/"))
      local odd = scratch.dir "odd"
      scratch.file("[]", odd .. "/manifest.json")
      sh("mkdir " .. odd .. "/etc")
      assert.equal("etc manifest.json", names_of(import(odd), "/"))
      local path = maker.docker(scratch.dir "docker", images)
      local packed = maker.pack(path, scratch.dir "packed" .. "/image.tar")
      assert.match("manifest.json", names_of(import(packed, { format = "tarball" }), "/"))
      assert.match("manifest.json", names_of(import(path, { format = "directory" }), "/"))
    end)

    it("and says what cannot be", function()
      local path = layout(images)
      raises("invalid", import, path, { format = "tarball" })
      raises("invalid", import, path, { format = "zip" })
      raises("not_found", import, "oci:/no/such/place:tag")
      local file = scratch.file "x"
      raises("invalid", import, file, { format = "directory" })
    end)
  end)

  it("takes what skopeo writes", function()
    local layers = { one_file "f", maker.layer({ { name = "g", data = "g" } }, "gzip") }
    local from = "oci:" .. layout { maker.image { layers = layers } }
    local dir = scratch.dir "skopeo"
    local function copy(to, options)
      sh(("cd %s && skopeo --insecure-policy --tmpdir %s copy -q %s %s %s")
        :format(dir, dir, options or "", from, to))
    end
    copy("docker-archive:saved.tar:some/name:1")
    copy("oci-archive:layout.tar:1", "--dest-compress-format zstd")
    copy("oci:layout:1")
    for _, name in ipairs { "saved.tar", "layout.tar", "layout" } do
      assert.equal("f g", names_of(import(dir .. "/" .. name), "/"), name)
    end
    assert.equal("f g", names_of(import("docker-archive:" .. dir .. "/saved.tar:some/name:1"), "/"))
  end)

  describe("takes one from a registry", function()
    local server

    lazy_setup(function()
      server = registry.start()
      local layers = {}
      for i = 1, 5 do
        layers[i] = maker.layer({ { name = "f" .. i, data = ("x"):rep(i * 100000) } }, "gzip")
      end
      layers[6] = layers[2]
      local image = maker.image { layers = layers, config = { Cmd = { "sh" } }, name = "latest" }
      server:push(layout { image }, "some/thing:1")
      image = maker.image { layers = { layers[1] }, platform = other_platform(), name = "latest" }
      server:push(layout { image }, "foreign:latest")
    end)

    lazy_teardown(function() if server then server:stop() end end)

    it("for the platform that is asked for", function()
      local name = server.host .. "/foreign"
      local line = tostring(raises("unsupported", import, name))
      assert.match("it is for " .. platform.text(other_platform()), line, 1, true)
      assert.equal("f1", names_of(import(name, { platform = other_platform().architecture }), "/"))
      assert.equal(name .. ":latest", box.images:get(name .. ":latest").tag)
    end)

    it("and names it in what goes wrong", function()
      local function failed(kind, name, opts)
        local line = tostring(raises(kind, box.images.import, box.images, server.host .. name, opts))
        assert.match("^import: ", line)
        assert.match(server.host .. name, line, 1, true)
      end
      failed("not_found", "/no/such:image")
      failed("invalid", "/Capital/letters")
      raises("invalid", box.images.import, box.images, server.host .. "/x", { username = "me" })
      raises("not_found", box.images.use, box.images, "no-host-here/x:1")
      raises("not_found", box.images.use, box.images, "debian:12", { strict = true })
    end)

    it("without a tag, and whatever lies in the working directory", function()
      local name = "docker://" .. server.host .. "/foreign"
      local opts = { tag = false, format = "registry", platform = other_platform().architecture, anonymous = true }
      local image = import(name, opts)
      assert.is_nil(image.tag)
      assert.equal("f1", names_of(image, "/"))
      for _, path in ipairs { "/etc", "./spec", "oci:/tmp", "a b" } do
        raises("invalid", import, path, { format = "registry" })
      end
    end)

    it("which has its name there as its tag", function()
      local name = server.host .. "/some/thing:1"
      raises("not_found", box.images.use, box.images, name, { strict = true })
      local seen = {}
      local image = box.images:use(name, { on_progress = function(event)
        if event.op == "download" then seen[#seen + 1] = event end
      end })
      assert.equal("f1 f2 f3 f4 f5", names_of(image, "/"))
      assert.equal(name, image.tag)
      assert.equal("import " .. name, image.command)
      assert.is_true(seen[#seen].finished)
      server:stop() -- from here on there is nobody to ask
      server = nil
      for _, spelling in ipairs { name, "docker://" .. name } do
        assert.equal(image.uuid, box.images:use(spelling).uuid)
      end
    end)
  end)

  it("tells how far it is", function()
    local layers = {}
    for i = 1, 5 do layers[i] = one_file("f" .. i, ("data %d\n"):format(i):rep(50000)) end
    local path = layout { maker.image { layers = layers } }
    local seen = {}
    import(path, { on_progress = function(event)
      local last = seen[event.op] or { done = 0, total = event.total }
      assert.is_true(event.done >= last.done and event.done <= event.total)
      assert.equal(last.total, event.total)
      assert.is_nil(last.finished)
      assert.equal(path, event.item)
      assert.equal("bytes", event.unit)
      seen[event.op] = event
    end })
    for _, op in ipairs { "download", "unpack" } do
      assert.is_true(seen[op].finished)
      assert.equal(seen[op].total, seen[op].done)
    end
    local problem = select(2, pcall(import, layout { maker.image { layers = { one_file("new", "q") } } },
      { on_progress = function() error("enough", 0) end }))
    assert.equal("enough", problem)
  end)

  it("tells it at most ten times a second", function()
    local layers = {}
    for i = 1, 30 do layers[i] = one_file("often" .. i, "often" .. i) end
    local count, last = 0, nil
    local function uptime()
      local file <close> = assert(io.open "/proc/uptime")
      return file:read "n"
    end
    local start = uptime()
    import(layout { maker.image { layers = layers } }, { on_progress = function(event)
      count, last = count + 1, event
    end })
    assert.is_true(count <= (uptime() - start) * 10 + 4, count)
    assert.is_true(last.finished)
    assert.equal("unpack", last.op)
  end)

  it("works where the caller cannot be suspended", function()
    local function fresh(name)
      local twice = one_file(name .. "-twice")
      return layout { maker.image { layers = { twice, one_file(name), twice } } }
    end
    local function check(name, image) assert.equal(name .. " " .. name .. "-twice", names_of(image, "/")) end
    bough.run(function()
      check("generator", coroutine.wrap(function() return box.images:import(fresh "generator") end)())
      local image
      table.sort({ 1, 2 }, function(a, b)
        image = image or box.images:use(fresh "sorted", { tag = "sorted" })
        return a < b
      end)
      check("sorted", image)
    end)
    check("outside", coroutine.wrap(function() return box.images:import(fresh "outside") end)())
  end)

  it("leaves a deadline of the caller's its name", function()
    local path = layout { maker.image { layers = { one_file("late", ("late"):rep(1 << 20)) } } }
    assert.equal("deadline", raises("timeout", bough.deadline, 0.001, import, path).op)
    assert.match("^deadline: ", tostring(raises("timeout", bough.deadline, 0.001, import, path)))
  end)

  it("keeps to max_bytes and max_files over all layers together", function()
    local layers = { one_file("a", ("a"):rep(60000)), one_file("b", ("b"):rep(60000)) }
    local path = layout { maker.image { layers = layers } }
    local problem = raises("resource", import, path, { max_bytes = 100000 })
    assert.match("max_bytes is 100000", problem.message)
    assert.equal(1, problem.message:find('"' .. path:sub(1, 50), 1, true))
    raises("resource", import, layout { maker.image { layers = {
      maker.layer { { name = "1" }, { name = "2" } }, maker.layer { { name = "3" }, { name = "4" } } } } },
      { max_files = 3 })
    assert.equal("a b", names_of(import(path, { max_bytes = "1M" }), "/"))
  end)

  it("can be cancelled, and leaves nothing in the making", function()
    local layer = one_file("big", ("x"):rep(20 << 20))
    local path = layout { maker.image { layers = { layer } } }
    local task = bough.spawn(function() return import(path, { tag = "cancelled" }) end)
    bough.run(function()
      bough.sleep(0.005)
      task:cancel()
      pcall(task.wait, task)
    end)
    raises("not_found", box.images.get, box.images, "cancelled")
    for name in lfs.dir(box:info().scratch) do assert.is_nil(name:find "^bring", name) end
  end)

  it("is found again by use with a tag", function()
    local path = layout { maker.image { layers = { one_file "used" } } }
    local image = box.images:use(path, { tag = "used" })
    assert.equal(image.uuid, box.images:use(path, { tag = "used" }).uuid)
    assert.equal(image.uuid, box.images:use("used", { strict = true }).uuid)
    raises("not_found", box.images.use, box.images, path, { strict = true })
  end)

  it("refuses options that make no sense", function()
    local path = layout { maker.image { layers = { one_file "f" } } }
    local function refused(opts, ...)
      local problem = raises("invalid", import, path, opts)
      for _, text in ipairs { ... } do assert.match(text, tostring(problem), 1, true) end
    end
    refused({ username = "me" }, "password is missing")
    refused({ password = "secret" }, "username is missing")
    refused({ username = "me", password = "secret" }, "no registry")
    refused({ username = "me", password = 7 }, "password must be")
    refused({ platform = 3 }, "linux/arm64")
    refused({ max_files = 0 }, "max_files")
    refused({ plattform = "x" }, "platform")
    refused({ anonymous = true }, "no registry")
    refused({ username = "me", password = "secret", anonymous = true }, "exclude each other")
    raises("invalid", import, "01234567-89ab-4def-8123-456789abcdef")
    raises("invalid", import, scratch.dir "plain", { platform = "linux/arm64" })
    assert.not_match("secret", tostring(raises("invalid", import, path, { password = "secret" })))
  end)

  it("serves several at once", function()
    local shared, tries = one_file("shared", ("s"):rep(300000)), {}
    for i = 1, 4 do
      local path = layout { maker.image { layers = { shared, one_file("f" .. i), shared } } }
      tries[i] = function() return import(path) end
    end
    for i, image in ipairs(bough.run(function() return bough.all(tries) end)) do
      assert.equal(("f%d shared"):format(i), names_of(image, "/"))
    end
  end)

  it("goes out of the store again with the image", function()
    local before = box:info().layers
    local image = import(layout { maker.image { layers = { one_file "passing", one_file "by" } } })
    local uuid = image.uuid
    image:remove()
    raises("not_found", box.images.get, box.images, uuid)
    box:gc()
    assert.is_true(box:info().layers <= before)
  end)
end)
