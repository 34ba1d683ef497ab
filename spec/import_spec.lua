--- Bringing images in: whole trees come whole, and what is hostile, broken or missing leaves nothing behind.

local bough = require "bough"
local lfs = require "lfs"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local tar = require "spec.support.fault_tar"

local quote, sh = scratch.quote, scratch.sh

local ODD = {
  "new\nline", "latin-\xe9\xff", " space ", "-dash", "quote'\"", "back\\slash", "*", ("n"):rep(255),
}

-- Everything below a path: name -> what can be compared, links within as the set of their names.
local function tree_of(image, path, prefix, found)
  found = found or {}
  for _, e in ipairs(image:ls(path or "/")) do
    local name = (prefix or "") .. e.name
    found[name] = ("%s %o %d:%d %s %s %d"):format(e.kind, e.mode, e.uid, e.gid,
      e.kind == "dir" and "" or e.size, e.symlink_to or "", math.floor(e.mtime))
    if e.kind == "file" then found[name] = found[name] .. " " .. e.nlink end
    if e.kind == "dir" then tree_of(image, (path or "") .. "/" .. e.name, name .. "/", found) end
  end
  return found
end

local function names_in(path)
  local names = {}
  for name in lfs.dir(path) do
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

describe("images:import", function()
  local home, box

  lazy_setup(function()
    home = scratch.store()
    box = bough.open { home = home }
  end)

  lazy_teardown(function() box:close() end)

  -- What there is of the store: images, layers, and what is in the making.
  local function state()
    local owner = names_in(home .. "/tmp")[1]
    return {
      images = #box.images:list { number = math.huge },
      layers = names_in(home .. "/layers"),
      making = names_in(home .. "/tmp/" .. owner),
    }
  end

  -- It is refused with one line, in which each pattern is, and nothing of it stays.
  local function refused(kind, source, ...)
    local before = state()
    local problem = raises(kind, box.images.import, box.images, source, { tag = "never" })
    local line = tostring(problem)
    assert.match("^import: ", line)
    assert.is_nil(line:find "%c", line)
    for _, pattern in ipairs { ... } do assert(line:find(pattern, 1, true), line) end
    assert.same(before, state())
    raises("not_found", box.images.get, box.images, "never")
    return problem
  end

  local function refused_archive(kind, entries, ...)
    return refused(kind, scratch.file(type(entries) == "string" and entries or tar.archive(entries)), ...)
  end

  describe("a directory", function()
    local dir, image, xattr

    lazy_setup(function()
      dir = scratch.dir "tree"
      xattr = scratch.dir "tool" .. "/xattr"
      sh("cc -o " .. xattr .. " spec/support/fault_xattr.c")
      sh(("chmod 0755 %s; cd %s"):format(dir, dir) .. [[
        umask 022
        mkdir sub sub/deep empty closed
        echo plain >plain; chmod 0640 plain
        echo program >program; chmod 4755 program
        echo secret >sub/deep/secret; chmod 0600 sub/deep/secret
        : >nothing; chmod 0000 nothing
        ln plain sub/hard
        ln -s plain soft; ln -s /etc/passwd outside; ln -s nowhere/at/all dangling
        mkfifo pipe
        truncate -s 1G sparse; printf end >>sparse
        chmod 1777 sub
        touch -d '2001-02-03 04:05:06.789' plain sub
        chmod 0555 closed
      ]] .. (scratch.is_root and "chown 1234:567 program; chmod 4755 program; chown -h 12:34 soft"
        or "chmod 0400 nothing"))
      for i, name in ipairs(ODD) do scratch.file("odd " .. i, dir .. "/" .. name) end
      sh(("%s set %s/plain user.colour green"):format(xattr, dir))
      image = box.images:import(dir, { tag = "tree" })
    end)

    it("comes with modes, owners, times and every kind of file", function()
      local found = tree_of(image)
      local function kind(name, text) assert.equal(text, found[name]:match "^%a+ %d+") end
      assert.match("^file 640 0:0 6  981173106 2$", found.plain)
      assert.match("^file 640 0:0 6  981173106 2$", found["sub/hard"])
      assert.match("^dir 1777 0:0   981173106$", found.sub)
      kind("closed", "dir 555")
      kind("empty", "dir 755")
      kind("sub/deep/secret", "file 600")
      kind("nothing", scratch.is_root and "file 0" or "file 400")
      kind("pipe", "fifo 644")
      assert.match("^symlink 777 " .. (scratch.is_root and "12:34" or "0:0") .. " 5 plain ", found.soft)
      assert.match("/etc/passwd", found.outside)
      assert.match("nowhere/at/all", found.dangling)
      if scratch.is_root then assert.match("^file 4755 1234:567", found.program) end
      assert.equal("plain\n", image:read "/sub/hard")
      assert.equal("secret\n", image:read "/sub/deep/secret")
      raises("not_found", image.read, image, "/dangling")
      raises("not_found", image.read, image, "/outside")
    end)

    it("comes with names of any bytes", function()
      for i, name in ipairs(ODD) do assert.equal("odd " .. i, image:read("/" .. name)) end
    end)

    it("comes with its holes and its attributes", function()
      local found = tree_of(image)
      assert.match("^file 644 0:0 1073741827 ", found.sparse)
      assert.is_true(image.size < 4 << 20, "takes " .. image.size)
      local layers = names_in(home .. "/layers")
      table.sort(layers, function(a, b) return tonumber(a) > tonumber(b) end)
      local seen
      for _, id in ipairs(layers) do
        local path = ("%s/layers/%s/fs/plain"):format(home, id)
        if lfs.symlinkattributes(path) then seen = sh(("%s get %s user.colour"):format(xattr, path)) break end
      end
      assert.equal("green", seen)
    end)

    it("is not touched, nor shared with the image", function()
      scratch.file("changed later", dir .. "/plain")
      assert.equal("plain\n", image:read "/plain")
      sh(("cd %s && printf 'plain\\n' >plain && touch -d '2001-02-03 04:05:06.789' plain"):format(dir))
    end)

    it("is the same as a tarball, plain and compressed", function()
      local path = scratch.dir "tarball"
      -- what tar itself leaves out: attributes
      sh(("tar -C %s --sparse --numeric-owner -cf %s/plain.tar ."):format(quote(dir), path))
      sh(("cd %s && gzip -k plain.tar && xz -k -1 plain.tar && zstd -q plain.tar"):format(path))
      local expected = tree_of(image)
      for _, name in ipairs { "plain.tar", "plain.tar.gz", "plain.tar.xz", "plain.tar.zst" } do
        local other = tree_of(box.images:import(path .. "/" .. name))
        if not scratch.is_root then -- the archive has our own ids, the tree is root's
          for _, found in ipairs { other, expected } do
            for key, text in pairs(found) do found[key] = text:gsub("%d+:%d+", "-", 1) end
          end
        end
        assert.same(expected, other, name)
      end
    end)

    it("with a device in it comes without it", function()
      local odd = scratch.dir "odd"
      scratch.file("here", odd .. "/file")
      if scratch.is_root then sh("mknod " .. odd .. "/disk b 8 0; mknod " .. odd .. "/null c 1 3") end
      local found = box.images:import(odd):ls "/"
      assert.equal(1, #found)
      assert.equal("file", found[1].name)
    end)
  end)

  describe("an archive", function()
    it("keeps owners and what pax says", function()
      local image = box.images:import(scratch.file(tar.archive {
        { name = "owned", uid = 1234, gid = 567, data = "x", mode = tonumber("2750", 8) },
        { name = "short", data = "y",
          pax = { path = "dir/long-" .. ("l"):rep(200), mtime = "1234567890.5" } },
        { name = "colour", pax = { ["SCHILY.xattr.user.colour"] = "blue" }, data = "z" },
      }))
      local found = tree_of(image)
      local all = box:info().uids
      if all == "all" or tonumber(all) > 1234 then assert.match("^file 2750 1234:567 1 ", found.owned) end
      assert.match(" 1234567890 ", found["dir/long-" .. ("l"):rep(200)])
    end)

    it("with an entry twice has the later one", function()
      local image = box.images:import(scratch.file(tar.archive {
        { name = "f", data = "first" }, { name = "f", type = "2", link = "/etc/passwd" },
        { name = "f", data = "second" },
      }))
      assert.equal("second", image:read "/f")
      assert.equal(1, #image:ls "/")
    end)

    it("with devices comes without them", function()
      local image = box.images:import(scratch.file(tar.archive {
        { name = "dev/", type = "5", mode = 493 }, { name = "dev/sda", type = "4", major = 8 },
        { name = "dev/null", type = "3", major = 1, minor = 3 }, { name = "file", data = "here" },
      }))
      assert.same({}, image:ls "/dev")
      assert.equal("here", image:read "/file")
    end)

    it("that leads out is refused", function()
      local outside = scratch.dir "outside"
      refused_archive("invalid", { { name = "ok", data = "1" }, { name = "/etc/evil", data = "2" } },
        '"/etc/evil"', "absolute")
      refused_archive("invalid", { { name = "../evil", data = "1" } }, '"../evil"', '".."')
      refused_archive("invalid", { { name = "a/b/../../../evil", data = "1" } }, "a/b/../../../evil")
      refused_archive("invalid", { { name = "way", type = "2", link = outside },
        { name = "way/evil", data = "1" } }, "way/evil", outside)
      refused_archive("invalid", { { name = "up", type = "2", link = "../../.." },
        { name = "up/evil", data = "1" } }, "up/evil")
      refused_archive("invalid", { { name = "h", type = "1", link = "/etc/passwd" } }, '"h"', "/etc/passwd")
      refused_archive("invalid", { { name = "h", type = "1", link = "../../etc/passwd" } }, '"h"')
      refused_archive("invalid", { { name = "way", type = "2", link = "/etc" },
        { name = "h", type = "1", link = "way/passwd" } }, '"h"')
      assert.same({}, names_in(outside))
    end)

    it("that forges what belongs to the overlay is refused", function()
      for _, key in ipairs { "trusted.overlay.opaque", "user.overlay.opaque", "trusted.overlay.redirect" } do
        local pax = { ["SCHILY.xattr." .. key] = "y" }
        refused_archive("invalid", { { name = "d/", type = "5", pax = pax } }, key)
      end
    end)

    it("that is no archive is refused", function()
      refused_archive("invalid", "", "not a tar archive")
      refused_archive("invalid", "#!/bin/sh\necho hello\n", "not a tar archive")
      refused_archive("invalid", "PK\3\4" .. ("zip"):rep(500), "not a tar archive")
      local path = scratch.file "just text\n"
      sh("gzip " .. path)
      refused("invalid", path .. ".gz", "not a tar archive")
    end)

    it("that ends too soon or is damaged is refused, whatever its compression", function()
      local dir = scratch.dir "broken"
      local noise = sh "head -c 300000 /dev/urandom | base64"
      local archive = tar.archive { { name = "first", data = "1" }, { name = "noise", data = noise } }
      scratch.file(archive, dir .. "/a.tar")
      sh(("cd %s && gzip -k a.tar && xz -k -0 a.tar && zstd -q --check a.tar"):format(dir))
      for _, name in ipairs { "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.zst" } do
        local file = assert(io.open(dir .. "/" .. name, "rb"))
        local bytes = file:read "a"
        file:close()
        local middle = #bytes // 2
        refused_archive("corrupt", bytes:sub(1, middle))
        if name ~= "a.tar" then
          refused_archive("corrupt", bytes:sub(1, middle) .. ("\xff\0"):rep(32) .. bytes:sub(middle + 65))
        end
      end
    end)

    it("that claims more than it holds is refused", function()
      refused_archive("corrupt", { { name = "huge", data = "little", size = 8 << 30 - 1 } }, "huge")
    end)

    it("that is a bomb is stopped", function()
      local dir = scratch.dir "bomb"
      local size = 3 << 30
      scratch.file(tar.entry({ name = "zeros", size = size }), dir .. "/head")
      sh(("cd %s && { cat head; head -c %d /dev/zero; } | zstd -q -1 -o bomb.tar.zst")
        :format(dir, size + 1024))
      assert.is_true(lfs.attributes(dir .. "/bomb.tar.zst", "size") < 1 << 20)
      refused("resource", dir .. "/bomb.tar.zst", "bomb")
    end)

    it("that holds more than max_bytes is stopped", function()
      local path = scratch.file(tar.archive {
        { name = "a", data = ("x"):rep(300000) }, { name = "b", data = ("x"):rep(800000) },
      })
      local problem = raises("resource", box.images.import, box.images, path, { max_bytes = 1000000 })
      assert.match('"b".*1000000', tostring(problem))
      local dir = path:match "^(.*)/"
      problem = raises("resource", box.images.import, box.images, dir, { max_bytes = "1M" })
      assert.match("larger than", tostring(problem))
      raises("invalid", box.images.import, box.images, dir, { max_bytes = "much" })
    end)

    it("is named first when it is broken or too large, and so is the limit", function()
      local dir = scratch.dir "named"
      local bytes = tar.archive {
        { name = "a", data = ("a"):rep(5000) }, { name = "b", data = ("b"):rep(5000) },
      }
      scratch.file(bytes, dir .. "/whole.tar")
      scratch.file(bytes:sub(1, 7000), dir .. "/cut.tar")
      scratch.file("text\n", dir .. "/text.tar")
      sh(("cd %s && gzip -k whole.tar && mkdir tree && tar -xf whole.tar -C tree"):format(dir))
      local function failed(kind, name, opts, text)
        local line = raises(kind, box.images.import, box.images, dir .. "/" .. name, opts).message
        assert.equal(1, line:find('"' .. (dir .. "/" .. name):sub(1, 50), 1, true), line)
        assert.match(text, line)
      end
      failed("corrupt", "cut.tar", nil, "archive entry")
      failed("invalid", "text.tar", nil, "not a tar archive")
      for _, name in ipairs { "whole.tar", "whole.tar.gz", "tree" } do
        failed("resource", name, { max_bytes = 6000 }, "max_bytes is 6000")
        failed("resource", name, { max_files = 1 }, "max_files is 1")
      end
    end)

    it("with control characters in its names gives one line that can be printed", function()
      refused_archive("invalid", { { name = "../\27[2J\nfake: line", data = "1" } }, "\\x1b")
    end)
  end)

  describe("of what is not there or not to be used", function()
    it("names a missing path", function()
      refused("not_found", "/no/such/tree", "/no/such/tree")
      refused("not_found", scratch.file "x" .. "/below", "below")
    end)

    it("refuses fifos and devices, and does not wait for them", function()
      local dir = scratch.dir "special"
      sh("mkfifo " .. dir .. "/pipe")
      refused("invalid", dir .. "/pipe", dir .. "/pipe", "regular file")
      refused("invalid", "/dev/zero", "/dev/zero", "regular file")
    end)

    it("names what may not be read", function()
      if scratch.is_root then return end -- root reads everything
      local dir = scratch.dir "denied"
      sh(("mkdir -m 0 %s/tree; echo x >%s/a.tar; chmod 0 %s/a.tar"):format(dir, dir, dir))
      refused("denied", dir .. "/a.tar", "a.tar")
      refused("denied", dir .. "/tree", dir .. "/tree")
      refused("denied", "/etc", "open") -- shadow, at the latest
    end)
  end)

  describe("of busybox", function()
    local lua = lfs.symlinkattributes("/proc/self/exe", "target")

    -- What a process says whose busybox is at `path`.
    local function use_with(path)
      local pipe = assert(io.popen(("BOUGH_BUSYBOX=%s %s spec/support/fault_child.lua %s open 2>&1")
        :format(quote(path), quote(lua), quote(home))))
      local text = pipe:read "a"
      pipe:close()
      return text:match "\nuse ([^\n]*)\n" or text
    end

    it("says what to install when there is none", function()
      local before = state()
      local said = use_with "/nowhere/busybox"
      assert.match("^raised not_found import: busybox: ", said)
      assert.match("busybox%-static", said)
      assert.match("BOUGH_BUSYBOX", said)
      assert.same(before, state())
    end)

    it("does not take one that needs libraries, or is no program", function()
      local before = state()
      local path = scratch.dir "busybox" .. "/busybox"
      sh("cp /bin/true " .. path)
      assert.match("^raised not_found import: busybox: .*not statically linked", use_with(path))
      scratch.file("#!/bin/sh\n", path)
      assert.match("^raised not_found import: busybox: ", use_with(path))
      assert.same(before, state())
    end)

    it("makes one that runs, once", function()
      local image = box.images:use "busybox"
      assert.equal("hello\n", image:run "echo hello".stdout)
      assert.equal(image.uuid, box.images:use "busybox".uuid)
    end)
  end)

  it("goes on after all that", function()
    local dir = scratch.dir "again"
    scratch.file("fine", dir .. "/file")
    assert.equal("fine", box.images:import(dir, { tag = "again" }):read "/file")
    assert.equal("fine", box.images:get "again":read "/file")
  end)

  it("serves several at a time", function()
    local paths = {}
    for i = 1, 6 do
      local entries = {}
      for j = 1, 50 do entries[j] = { name = ("%d/f%d"):format(i, j), data = ("data"):rep(j * 100) } end
      paths[i] = scratch.file(tar.archive(entries))
    end
    local tries = {}
    for i, path in ipairs(paths) do
      tries[i] = function() return box.images:import(path) end
    end
    for i, image in ipairs(bough.run(function() return bough.all(tries) end)) do
      assert.equal(50, #image:ls("/" .. i))
      assert.equal(("data"):rep(5000), image:read(("/%d/f50"):format(i)))
    end
  end)
end)
