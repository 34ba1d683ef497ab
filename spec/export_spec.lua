--- image:export: others take what we write, and what comes back is what went.

local bough = require "bough"
local json = require "bough.json"
local lfs = require "lfs"
local maker = require "spec.support.oci_maker"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local sh, quote = scratch.sh, scratch.quote

-- Every file and what can be told of it from inside, by a program that is in the tree.
local LOOK = [[
cd / && {
  busybox find bin sub f l* n* -type f -exec busybox stat -c '%n %h %s' {} +
  busybox find bin sub tmp opaque f l* n* pipe* sparse -exec busybox stat -c '%n %F %a %u:%g %Y %N' {} +
  busybox find f sub -type f -exec busybox sha256sum {} +
} | busybox sort]]

local function names_in(path)
  local names = {}
  for name in lfs.dir(path) do
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- name -> what can be compared, of a whole image.
local function tree_of(image, path, found)
  found, path = found or {}, path or "/"
  for _, e in ipairs(image:ls(path)) do
    local full = path .. e.name
    found[full] = ("%s %o %d:%d %s %s %.9f %s"):format(e.kind, e.mode, e.uid, e.gid,
      e.kind == "dir" and "" or e.size, e.symlink_to or "", e.mtime, e.kind == "file" and e.nlink or "")
    if e.kind == "file" and e.size < 1e6 then found[full] = found[full] .. " " .. image:read(full) end
    if e.kind == "dir" then tree_of(image, full .. "/", found) end
  end
  return found
end

describe("image:export", function()
  local box, image, bare, xattr

  lazy_setup(function()
    box = bough.open { home = scratch.store() }
    xattr = scratch.dir "tool" .. "/xattr"
    sh("cc -o " .. xattr .. " spec/support/fault_xattr.c")
    local dir = scratch.dir "tree"
    sh(("chmod 0755 %s; cd %s"):format(dir, dir) .. [[
      umask 022
      mkdir bin etc tmp dev proc sys sub sub/deep opaque goes
      cp "${BOUGH_BUSYBOX:-/bin/busybox}" bin/busybox && ln -s busybox bin/sh
      echo 'root:x:0:0::/:/bin/sh' >etc/passwd
      echo first >f; echo shared >linked; ln linked sub/hard; ln -s ../f sub/soft; ln -s /nowhere sub/dangling
      echo x >opaque/old; echo y >goes/away; mkfifo pipe; chmod 1777 tmp; : >nothing
      echo deep >sub/deep/file; chmod 4755 sub/deep/file; chmod 2750 sub/deep; chmod 0400 linked
      truncate -s 3M sparse; printf end >>sparse
      printf '%s' "new
line" >"$(printf 'new\nline')"; echo l >"$(printf 'latin-\351')"; echo long >]] .. ("n"):rep(255) .. [[

      touch -d '2001-02-03 04:05:06.789012345' f sub sub/deep/file
    ]] .. (scratch.is_root and [[
      chown 1234:567 sub/deep/file; chmod 4755 sub/deep/file; chown -h 12:34 sub/soft
    ]] or ""))
    sh(("%s set %s/f user.colour green"):format(xattr, dir))
    bare = box.images:import(dir, { tag = "bare" })
    image = bare:run("busybox rm -r goes opaque; busybox mkdir opaque; echo new >opaque/new; cd sub; "
      .. "echo z >one; busybox ln one two; busybox chmod 0711 deep", { check = true })
    image = image:run("echo second >>f; busybox rm sub/dangling; busybox mknod pipe2 p; "
      .. "busybox touch -d @981173106 f", { check = true, tag = "project/image:1" })
  end)

  lazy_teardown(function() box:close() end)

  -- What is in a layout or unpacked archive: configuration and layers.
  local function documents(path)
    local index = json.read(maker.read(path .. "/index.json"))
    local manifest = json.read(maker.read(maker.blob(path, index.manifests[1].digest)))
    return index, manifest, json.read(maker.read(maker.blob(path, manifest.config.digest)))
  end

  local function out(name) return scratch.dir "export" .. "/" .. (name or "out") end

  local ways = {
    { format = "oci" }, { format = "oci", layers = "one", compress = "none" },
    { format = "oci", compress = "zstd" }, { format = "oci", tar = true }, { format = "docker" },
    { format = "docker", layers = "one", compress = "gzip" },
  }

  local function each_way(check)
    for _, way in ipairs(ways) do
      local opts = { format = way.format, layers = way.layers, compress = way.compress }
      local path = out((way.tar or way.format == "docker") and "image.tar" or "image")
      assert.equal(path, image:export(path, opts))
      local label = ("%s %s %s"):format(way.format, way.layers or "chain", way.compress or "default")
      local kind = way.format == "docker" and "docker-archive:" or way.tar and "oci-archive:" or "oci:"
      check(path, kind, label)
      scratch.remove(path)
    end
  end

  describe("gives an image that comes back", function()
    it("the same in names, types, modes, owners, times, links and content", function()
      local expected = tree_of(image)
      each_way(function(path, _, label)
        local back = box.images:import(path)
        assert.same(expected, tree_of(back), label)
      end)
    end)

    it("the same to the last attribute", function()
      local function digest(of)
        local path = out()
        of:export(path, { layers = "one", compress = "none" })
        return (select(3, documents(path))).rootfs.diff_ids[1]
      end
      local expected = digest(image)
      each_way(function(path, _, label) assert.equal(expected, digest(box.images:import(path)), label) end)
    end)

    it("after skopeo has copied it", function()
      local expected = tree_of(image)
      each_way(function(path, kind, label)
        local dir = scratch.dir "copied"
        for name, to in pairs { a = "oci:%s/a:1", ["b.tar"] = "oci-archive:%s/b.tar",
          -- docker has no zstd
          ["c.tar"] = not label:find "zstd" and "docker-archive:%s/c.tar:x/y:1" or nil } do
          sh(("skopeo --insecure-policy --tmpdir %s copy -q %s%s %s"):format(dir, kind, path, to:format(dir)))
          assert.same(expected, tree_of(box.images:import(dir .. "/" .. name)), label .. " " .. name)
        end
      end)
    end)
  end)

  it("is one layer or the chain", function()
    local path = out()
    image:export(path)
    local _, manifest, config = documents(path)
    assert.equal(3, #manifest.layers)
    assert.equal(3, #config.rootfs.diff_ids)
    assert.equal(3, #config.history)
    assert.match("busybox rm %-r goes", config.history[2].created_by)
    path = out()
    image:export(path, { layers = "one" })
    _, manifest, config = documents(path)
    assert.equal(1, #manifest.layers)
    assert.equal(1, #config.rootfs.diff_ids)
    local filled = 0
    for _, entry in ipairs(config.history) do filled = filled + (entry.empty_layer and 0 or 1) end
    assert.equal(1, filled)
    assert.equal("application/vnd.oci.image.layer.v1.tar+gzip", manifest.layers[1].mediaType)
  end)

  it("shares layers with what it was made from", function()
    local one, two = out(), out()
    bare:export(one)
    image:export(two)
    local _, first = documents(one)
    local _, second = documents(two)
    assert.same(first.layers[1], second.layers[1])
    local back = box.images:import(one)
    local before = box:info().layers
    local images = { box.images:import(two), box.images:import(two) }
    assert.is_true(box:info().layers <= before + 2)
    assert.same(tree_of(bare), tree_of(back))
    assert.same(tree_of(image), tree_of(images[2]))
  end)

  it("is the same each time", function()
    for _, format in ipairs { "oci", "docker" } do
      local one, two = out "a.tar", out "b.tar"
      image:export(one, { format = format })
      image:export(two, { format = format })
      assert.equal(maker.digest(maker.read(one)), maker.digest(maker.read(two)), format)
    end
  end)

  it("carries the defaults on", function()
    local layer = maker.layer { { name = "f", data = "x" } }
    local config = {
      Env = { "PATH=/bin", "A=b" }, WorkingDir = "/tmp", User = "12:34", Entrypoint = { "/bin/sh", "-c" },
      Cmd = { "true" }, Labels = { maintainer = "somebody" },
      ExposedPorts = { ["80/tcp"] = {}, ["53/udp"] = {} },
    }
    local from = maker.layout(scratch.dir "layout", { maker.image { layers = { layer }, config = config } })
    local path = out()
    box.images:import(from):export(path)
    local _, _, written = documents(path)
    assert.same(config, written.config)
    assert.equal("linux", written.os)
    assert.match("^%d+%-%d%d%-%d%dT%d%d:%d%d:%d%dZ$", written.created)
    local there = json.read(sh("skopeo inspect --config oci:" .. path))
    assert.same(config, there.config)
  end)

  it("has a layer even when the image has none", function()
    local from = maker.layout(scratch.dir "layout", { maker.image { layers = {} } })
    local empty = box.images:import(from)
    for _, name in ipairs { "image", "image.tar" } do
      local path = out(name)
      empty:export(path)
      assert.equal(0, #box.images:import(path):ls "/")
    end
  end)

  describe("names it", function()
    local function name_in(path)
      local index = documents(path)
      return (index.manifests[1].annotations or {})["org.opencontainers.image.ref.name"]
    end

    it("as it is tagged, or as asked for", function()
      local path = out()
      image:export(path)
      assert.equal("project/image:1", name_in(path))
      path = out()
      image:export(path, { tag = "other:2" })
      assert.equal("other:2", name_in(path))
      path = out "saved.tar"
      image:export(path, { format = "docker", name = "example.org/x/y" })
      local manifest = json.read(sh("tar -xOf " .. path .. " --wildcards '*manifest.json'"))
      assert.same({ "example.org/x/y:latest" }, manifest[1].RepoTags)
    end)

    it("not at all where others could not", function()
      local odd = bare:tag_as "Some-Odd_Tag!"
      local path = out()
      odd:export(path)
      assert.is_nil(name_in(path))
      for _, name in ipairs { "Upper/Case", "a b", "../x", "a:b:c", "-x", "x@sha256:" .. ("0"):rep(64) } do
        raises("invalid", image.export, image, out(), { tag = name })
      end
    end)
  end)

  describe("is whole or not there", function()
    it("and never written over anything", function()
      local dir = scratch.dir "taken"
      scratch.file("mine", dir .. "/file")
      for _, name in ipairs { "", "/", "/file" } do
        assert.match("there already", tostring(raises("exists", image.export, image, dir .. name)))
      end
      sh("ln -s nowhere " .. dir .. "/link")
      raises("exists", image.export, image, dir .. "/link")
      assert.same({ "file", "link" }, names_in(dir))
      assert.match("no directory", tostring(raises("not_found", image.export, image, dir .. "/no/such")))
    end)

    it("when it fails or is cancelled on the way", function()
      local dir = scratch.dir "failing"
      local problem = select(2, pcall(image.export, image, dir .. "/out", {
        on_progress = function() error("enough", 0) end,
      }))
      assert.equal("enough", problem)
      bough.run(function()
        local task = bough.spawn(function() image:export(dir .. "/out.tar") end)
        bough.sleep(0.005)
        task:cancel()
        pcall(task.wait, task)
      end)
      for _, name in ipairs(names_in(dir)) do assert.is_nil(name:find "^%.bough", name) end
      raises("invalid", image.export, image, "")
      raises("invalid", image.export, image, dir .. "/out", { format = "zip" })
      raises("invalid", image.export, image, dir .. "/out", { compress = "xz" })
      raises("invalid", image.export, image, dir .. "/out", { layer = "one" })
      raises("invalid", image.export, image, dir .. "/out", { tag = "a", name = "b" })
    end)
  end)

  it("takes names as long as names can be", function()
    local path = out(("n"):rep(251) .. ".tar")
    image:export(path)
    assert.is_true(lfs.attributes(path, "size") > 0)
  end)

  it("leaves a deadline of the caller's its name", function()
    assert.equal("deadline", raises("timeout", bough.deadline, 0.01, image.export, image, out()).op)
  end)

  it("tells how far it is", function()
    local events = {}
    image:export(out "image.tar", { on_progress = function(event) events[#events + 1] = event end })
    local last = 0
    for i, event in ipairs(events) do
      assert.equal("export", event.op)
      assert.is_true(i == #events or event.done >= last)
      assert.equal(i == #events, event.finished == true)
      last = event.done
    end
    assert.is_true(events[#events].done > 0)
  end)

  it("an error that on_progress raises stays as it was", function()
    local mine = require("bough.core").error("state", "enough", { op = "mine" })
    local good, problem = pcall(image.export, image, scratch.dir() .. "/stopped", {
      on_progress = function() error(mine, 0) end,
    })
    assert.is_false(good)
    assert.equal(mine, problem)
    assert.equal("mine", problem.op)
  end)

  describe("is accepted", function()
    it("by skopeo", function()
      each_way(function(path, kind, label)
        local dir = scratch.dir "skopeo"
        local told = json.read(sh(("skopeo --tmpdir %s inspect %s%s"):format(dir, kind, path)))
        assert.equal("linux", told.Os, label)
        sh(("skopeo --insecure-policy --tmpdir %s copy -q %s%s dir:%s/out"):format(dir, kind, path, dir))
      end)
    end)

    -- Everything of podman's below one directory; runc gets along with control groups of both versions.
    local function podman(dir, line)
      return sh(("cd %s && HOME=$PWD XDG_RUNTIME_DIR=$PWD/run TMPDIR=$PWD podman --root $PWD/root"
        .. " --runroot $PWD/run --tmpdir $PWD/tmp --storage-driver vfs --cgroup-manager cgroupfs"
        .. " --events-backend none --runtime runc %s"):format(dir, line))
    end

    it("by podman, which runs it and finds the same", function()
      local command = quote(LOOK)
      local expected = image:run(LOOK, { check = true, disposable = true }).stdout
      -- podman takes no path for its state that is longer than 50 characters
      local dir = sh("mktemp -d /tmp/bough-podman.XXXXXX"):match "%S+"
      sh("mkdir -m 0700 " .. dir .. "/run")
      local _ <close> = setmetatable({}, { __close = function()
        pcall(podman, dir, "rm --all --force")
        pcall(podman, dir, "rmi --all --force")
        scratch.remove(dir)
        os.execute "find /sys/fs/cgroup/*/libpod_parent -depth -type d -exec rmdir {} + 2>/dev/null"
      end })
      -- by default it asks for more than this machine may allow
      local limits = "--ulimit nofile=256:256 --ulimit nproc=256:256"
      each_way(function(path, _, label)
        -- podman takes a directory's path for a name, in which it wants no capital letters
        sh(("ln -sfn %s %s/image"):format(path, dir))
        local said = podman(dir, "load -q -i image")
        local name = said:match "Loaded image: *(%S+)"
        assert.is_string(name, said)
        local got = podman(dir, ("run --rm --network=none %s %s /bin/busybox sh -c %s")
          :format(limits, name, command))
        assert.equal(expected, got, label)
      end)
      -- what it writes comes back
      image:export(dir .. "/again.tar", { layers = "one", format = "docker", tag = "again" })
      podman(dir, "load -q -i again.tar")
      for _, format in ipairs { "docker-archive", "oci-archive", "oci-dir" } do
        local path = ("%s/saved-%s"):format(dir, format)
        podman(dir, ("save -q --format %s -o %s again"):format(format, path))
        assert.same(tree_of(image), tree_of(box.images:import(path)), format)
      end
    end)
  end)
end)
